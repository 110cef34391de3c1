"""What the Snakefile stands on: jobs, costs, the planner."""
