"""Gathering experience: prompts to a generator, answers to a judge, groups back, every wait with a deadline."""
