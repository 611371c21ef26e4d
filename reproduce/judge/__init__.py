"""The judging of claims: intervals, the claims as data, and the ledger of their verdicts."""
