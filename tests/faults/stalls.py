"""Later."""


def stall_extractions(plan):
    return []
