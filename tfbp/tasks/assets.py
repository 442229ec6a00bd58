"""The names of the text files that an export carries for its task, in `assets.extra/`.

A module of its own: reading an export needs no task.
"""

LABELS = "labels.txt"  # class names, one a line, in label order
VOCABULARY = "vocabulary.json"  # see `tfbp.data.vocabulary.Vocabulary.to_json`
