"""Many runs of one recipe: its points, the processes that run them, what they cost, their table and their report."""
