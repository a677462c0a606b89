"""Transfer learning on photographs, honestly measured.

Importing this package does no work: TensorFlow is imported by the modules
that need it. `import flowers17_tfdata.data` registers the TFDS builder
`oxford_flowers17`.
"""

__version__ = "0.1.0"
