"""Exact, constraint and integer programming by others, as solvers: CP-SAT, HiGHS and Gurobi."""
