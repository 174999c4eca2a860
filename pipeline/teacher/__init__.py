"""Frozen vision towers of open_clip and timm behind one interface: `load_teacher` gives a `Teacher`.

request.py checks what is asked for; open_clip_zoo.py and timm_zoo.py find and load a tower; tower.py makes
both kinds look alike; attention.py recomputes the importance of patches.
"""
