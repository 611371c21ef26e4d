"""How records become pictures and tables."""
