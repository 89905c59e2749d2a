"""What each group of pictures is asked, in words; readable without torch."""

#: Groups whose pictures must no longer be recognised as what is erased; all others must be
#: recognised as their label.
ERASING = ("efficacy", "generality")

#: What each group asks, in the order of the table.
QUESTIONS = {
    "efficacy": "asked for, is the concept still drawn?",
    "generality": "called by other words, is it drawn?",
    "neighbours": "is what is close to it still drawn?",
    "specificity": "is everything else still drawn?",
}

#: Of pairs of pictures of the specificity group: what is measured, and which direction is good.
STRUCTURE = {
    "similarity": ("do its pictures mean the same as before?", "higher"),
    "distance": ("how far are its pixels from before?", "lower"),
}

#: The groups in a few words, as headings over pictures.
HEADINGS = {
    "efficacy": "the concept",
    "generality": "its domain",
    "neighbours": "neighbours",
    "specificity": "everything else",
}
