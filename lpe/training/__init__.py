"""The training loop and its schedules, for every method that trains."""
