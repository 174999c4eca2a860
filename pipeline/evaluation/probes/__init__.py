"""Probes of frozen features: linear ones of one token, and attentive ones that learn where to look."""
