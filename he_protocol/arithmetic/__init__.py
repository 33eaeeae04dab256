"""Integer kernels: residues, transforms, keystreams."""
