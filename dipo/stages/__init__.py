"""The stages of a job's recipe."""
