#!/bin/sh
# Make a throw-away certificate authority and one certificate of it for scheduler, workers and trainer alike.
#
#     certificates.sh FOLDER
#
# Dask trusts whoever shows a certificate of the authority and looks at no host name, so one for all will do. The
# authority's own key is not kept: nobody can make another certificate.
set -eu
folder=$1
authority=$(mktemp)
trap 'rm -f "$authority"' EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=dasktrain throw-away authority" \
    -keyout "$authority" -out "$folder/ca.pem"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=dasktrain node" \
    -addext "basicConstraints=critical,CA:FALSE" \
    -CA "$folder/ca.pem" -CAkey "$authority" -keyout "$folder/node-key.pem" -out "$folder/node.pem"
