"""Variants of one recipe side by side: which is better, by how much, and is it more than noise."""
