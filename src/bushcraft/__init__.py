"""Bushcraft: train great models from scratch on hardware you neither own nor trust."""

__version__ = "0.1.0"
