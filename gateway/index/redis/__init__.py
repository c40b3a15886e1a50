"""The prefix index in Redis or Valkey, shared by any number of gateways."""

from gateway.index.redis.index import IndexMisconfigured, RedisIndex

__all__ = ["IndexMisconfigured", "RedisIndex"]
