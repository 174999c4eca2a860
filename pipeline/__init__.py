"""MaskAlign pretraining in two stages with a feature cache between them.

The folders follow the data: teacher and views make the cache, the stream reads it, the student and the training use the stream.

Shapes, everywhere: B images, N patches of a square grid, K visible patches, T tokens of a teacher level (CLS first if there is one),
L student blocks, M teacher levels, C student width, D teacher width, G groups of channels that share a scale, P values of a patch's pixels.
"""
