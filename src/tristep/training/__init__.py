"""Learning: a task is trained by a loop, one step at a time, and nothing is lost when the loop is killed."""
