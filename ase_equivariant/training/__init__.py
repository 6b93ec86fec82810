"""Training: `ase-equivariant train CONFIG.yaml`, on Lightning (the extra `train`).

Imports everything and is imported by nothing: delete this folder and serving still works.
"""
