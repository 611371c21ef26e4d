"""Ensembles on disk; ``ensembles`` writes and reads it, ``container`` is the file itself."""
