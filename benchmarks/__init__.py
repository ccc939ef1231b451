"""Ratios: what this library costs against the bare database, the bare runtime, and a peer."""
