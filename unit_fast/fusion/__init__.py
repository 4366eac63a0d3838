"""Graph passes, one a file: each takes a graph, changes it in place, and says how often it did."""
