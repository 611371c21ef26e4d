"""The scale ``paper``: the paper's own models, given and not trained."""
