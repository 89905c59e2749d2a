"""Groups of generated images: their names, questions and headings; imports no torch."""

#: Groups whose images must no longer be recognised as the erased concept; images of all others
#: must be recognised as their label.
ERASURE_GROUPS = ("efficacy", "generality", "earlier")

#: The question of each group, in the order of the table.
GROUP_QUESTIONS = {
    "efficacy": "named, is the concept still shown?",
    "generality": "called by other words, is it shown?",
    "earlier": "are concepts of earlier edits shown?",
    "neighbours": "are close concepts still shown?",
    "specificity": "is everything else still shown?",
}

#: Metrics of image pairs of the specificity group: the question, and the better direction.
STRUCTURE_METRICS = {
    "similarity": ("do its images mean the same as before?", "higher"),
    "distance": ("how far are its pixels from before?", "lower"),
}

#: Headings of the groups above images.
GROUP_HEADINGS = {
    "efficacy": "the concept",
    "generality": "its domain",
    "earlier": "concepts of earlier edits",
    "neighbours": "neighbours",
    "specificity": "everything else",
}
