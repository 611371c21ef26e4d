"""What goes beyond the paper: every member's predictions in files, under shift and out of distribution."""
