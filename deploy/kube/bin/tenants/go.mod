module shardkv.io/deploy/kube/bin/tenants

go 1.26
