"""The names of the text files that an export carries for its task, in `assets.extra/`.

A module of its own: who reads exports needs neither Keras nor the tasks.
"""

LABELS = "labels.txt"  # class names, one a line, in label order
VOCABULARY = "vocabulary.json"  # see `tfbp.data.vocabulary.Vocabulary.to_json`
