#!/bin/sh
# A streaming replica of the views in a container: copies the primary once, then runs. What is half copied is begun anew.
set -eu
primary=$1
shift
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  until pg_isready -q -h "$primary" -U tidemark; do sleep 1; done
  rm -rf "$PGDATA.new"
  copy() { pg_basebackup -D "$PGDATA.new" -R -X stream -c fast "$@" -d "postgres://tidemark@$primary/postgres?application_name=replica_1"; }
  # The slot keeps what the replica has not had yet; it may be there from a try before.
  copy -C -S replica_1 || { rm -rf "$PGDATA.new"; copy -S replica_1; }
  chmod 700 "$PGDATA.new"
  mv "$PGDATA.new" "$PGDATA"
fi
exec postgres "$@"
