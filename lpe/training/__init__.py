"""One loop and its schedules; used by every method that trains."""
