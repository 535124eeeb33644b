"""Gaussian paths from data to noise, what a network predicts along them, and discrete schedules."""
