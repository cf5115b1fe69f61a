"""Generated from dataplane.proto; never edited by hand."""
