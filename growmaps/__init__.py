"""Shipped growmaps: data, their sidecars, and the profiles that they are derived from. Installed as `treeopt.growmaps`."""
