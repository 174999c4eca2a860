"""Frozen vision towers of open_clip and timm behind one interface: `load_teacher` in load.py, `Teacher` in teacher.py.

open_clip_zoo.py and timm_zoo.py find, check and load a tower; tower.py makes both kinds look alike; attention.py recomputes the importance.
"""
