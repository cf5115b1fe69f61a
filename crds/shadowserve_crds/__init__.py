"""What users write and read: the custom resources of ShadowServe, and the names that the parts agree on."""
