"""What measures the project runs."""
