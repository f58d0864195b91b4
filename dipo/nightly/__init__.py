"""A list of jobs packed on one machine or cluster, checked by gates and compared with the night before."""
