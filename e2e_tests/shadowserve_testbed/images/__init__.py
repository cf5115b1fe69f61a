"""Images for the test bed, made without a registry: Debian packages, wheels and our own code, as OCI archives."""
