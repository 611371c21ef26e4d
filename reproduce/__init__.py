"""The paper's figures, tables and claims, drawn from records of what was measured here."""
