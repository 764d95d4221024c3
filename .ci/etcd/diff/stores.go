package main

import (
	"fmt"

	"shardkv.dev/ci/etcd/process"
)

// stores makes the stores that are held against etcd.
type stores struct {
	name string
	// Makes a fresh store, and returns the function that ends it.
	fresh func(seed uint64) (*side, func(), error)
	// Ends all.
	stop func()
}

// newStores makes keyspaces of a playground, or, without its programs, further etcds.
func newStores(etcd, bin string) (*stores, error) {
	if bin == "" {
		return &stores{name: "a second etcd", fresh: secondEtcd(etcd), stop: func() {}}, nil
	}
	playground, err := process.StartPlayground(bin)
	if err != nil {
		return nil, err
	}
	return &stores{name: "keyspaces", fresh: keyspaceOf(playground), stop: playground.Stop}, nil
}

// secondEtcd returns a function that starts an etcd for each seed.
func secondEtcd(program string) func(uint64) (*side, func(), error) {
	return func(uint64) (*side, func(), error) {
		server, err := process.Etcd(program)
		if err != nil {
			return nil, nil, err
		}
		side, err := dial("second etcd", server.Addresses[0], "", false)
		return side, server.Stop, err
	}
}

// keyspaceOf returns a function that creates a keyspace for each seed. Seeds dial each node in turn, so some calls are passed on, and
// every other seed names the keyspace by the authority.
func keyspaceOf(playground *process.Playground) func(uint64) (*side, func(), error) {
	return func(seed uint64) (*side, func(), error) {
		name := fmt.Sprintf("diff-%d", seed)
		if err := playground.Keyspace("create", name); err != nil {
			return nil, nil, err
		}
		stop := func() {
			if err := playground.Keyspace("delete", name, "--yes"); err != nil {
				fmt.Println("etcd-diff:", err)
			}
		}
		addresses := playground.Addresses
		side, err := dial("keyspace", addresses[seed/2%uint64(len(addresses))], name, seed%2 == 1)
		return side, stop, err
	}
}
