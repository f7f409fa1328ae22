"""Measurements side by side, each against a floor taken in the same run: ratios count, not seconds."""
