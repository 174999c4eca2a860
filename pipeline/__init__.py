"""MaskAlign pretraining in two stages with a feature cache between them.

teacher, views and extraction make the cache; stream reads it; student, objectives and training learn from it.

Shapes, everywhere: B images, N patches of a square grid, K visible and U hidden patches, T tokens of a
teacher level (CLS first if there is one), L student blocks, M teacher levels, C student and D teacher width,
G groups of channels that share a scale, P values of a patch's pixels.
"""
