"""The embedded furnished room: textures, geometry, lighting and the ray caster."""
