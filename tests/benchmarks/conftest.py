"""What is a command of its own is no test: see the first lines of each."""

collect_ignore = [
    "detection",
    "detection_scale.py",
    "evaluation_scale.py",
    "failure",
    "interval_coverage.py",
    "label_efficiency",
    "neighbour_index.py",
]
