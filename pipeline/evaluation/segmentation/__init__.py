"""Segmentation: linear probe, nearest patches and UperNet, with their transforms, windows and confusions."""
