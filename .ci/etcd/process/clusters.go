package process

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// The members of a cluster that is measured.
const members = 3

// EtcdCluster starts an etcd of three members, whose logs are synced.
func EtcdCluster(program string) (*Server, error) {
	dir, err := os.MkdirTemp("", "shardkv-etcd-")
	if err != nil {
		return nil, err
	}
	server := &Server{}
	var peers []string
	for member := range members {
		server.Addresses = append(server.Addresses, freeAddress())
		peers = append(peers, fmt.Sprintf("m%d=http://%s", member, freeAddress()))
	}
	var stops []func()
	server.Stop = func() {
		for _, stop := range stops {
			stop()
		}
		os.RemoveAll(dir)
	}
	var ends []chan error
	for member := range members {
		name, peer, _ := strings.Cut(peers[member], "=")
		url := "http://" + server.Addresses[member]
		etcd := exec.Command(program, "--name", name, "--data-dir", dir+"/"+name, "--log-level", "panic",
			"--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(peers, ","))
		etcd.Stderr = os.Stderr
		if err := etcd.Start(); err != nil {
			server.Stop()
			return nil, err
		}
		server.pids = append(server.pids, etcd.Process.Pid)
		ended := make(chan error, 1)
		go func() { ended <- etcd.Wait() }()
		ends = append(ends, ended)
		stops = append(stops, func() {
			// It may have ended already.
			etcd.Process.Kill()
			<-ended
		})
	}
	for member, ended := range ends {
		if err := healthy("http://"+server.Addresses[member], ended); err != nil {
			server.Stop()
			return nil, err
		}
	}
	return server, nil
}
