"""Differentially private training: rows sampled, gradients clipped, noise added, what is spent counted.

Knows trainers; knows no task and no loss by name. Abadi et al. 2016, algorithm 1.
"""
