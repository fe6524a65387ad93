"""The cases, a module for each part of the protocol. `zapconform.catalog` imports them all."""
