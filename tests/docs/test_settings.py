"""The table of settings follows from their declarations."""

import html
import pathlib

import tfbp
from tfbp.settings import declared

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "command_line.md"
FINDINGS = "[findings](audit.md#before-training-the-audit)"  # too many to list


def row(setting) -> str:
    default = setting.text(setting.default)
    choices = FINDINGS if setting.name == "allow" else ", ".join(f"`{x}`" for x in setting.choices)
    text = html.escape(setting.help, quote=False).replace("[", "\\[")  # not a link
    meaning = f"{text}: {choices}" if choices else text
    owner = "Settings" if setting.name in declared(tfbp.Settings) else "Config"
    return (
        f"| `--{setting.name}` | {f'`{default}`' if default else 'unset'} | {meaning} | `{owner}` |"
    )


def test_the_table_of_settings_is_that_of_the_declarations():
    head = ["| flag | default | sets | field of `tfbp.` |", "|---|---|---|---|"]
    table = "\n".join([*head, *map(row, declared(tfbp.Config).values())])
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("<!-- settings")[2].partition("-->\n")[2].partition("<!-- /settings")[0]
    assert shown.strip() == table, f"The table in {PAGE.name} should be:\n\n{table}\n"
