"""Attention of student and teacher: maps, measures and plots."""
