// Package process starts the servers that the programs of this module talk to.
package process

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// The time that a server has to be ready.
const patience = time.Minute

// Server is a running server.
type Server struct {
	// The `host:port` of each node.
	Addresses []string
	// Ends the server and removes its data.
	Stop func()
	// The processes that were started.
	pids []int
}

// Etcd starts an etcd of one member with an empty directory.
func Etcd(program string) (*Server, error) {
	var failure error
	// Another program may take a free port before etcd does.
	for range 3 {
		var server *Server
		if server, failure = startEtcd(program); failure == nil {
			return server, nil
		}
	}
	return nil, failure
}

func startEtcd(program string) (*Server, error) {
	dir, err := os.MkdirTemp("", "shardkv-etcd-")
	if err != nil {
		return nil, err
	}
	client, peer := freeAddress(), "http://"+freeAddress()
	url := "http://" + client
	etcd := exec.Command(program, "--data-dir", dir, "--unsafe-no-fsync", "--log-level", "panic",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	etcd.Stderr = os.Stderr
	if err := etcd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- etcd.Wait() }()
	stop := func() {
		// It may have ended already.
		etcd.Process.Kill()
		<-ended
		os.RemoveAll(dir)
	}
	if err := healthy(url, ended); err != nil {
		stop()
		return nil, err
	}
	return &Server{Addresses: []string{client}, Stop: stop, pids: []int{etcd.Process.Pid}}, nil
}

// healthy waits until etcd says that it is healthy.
func healthy(url string, ended chan error) error {
	late := time.After(patience)
	for {
		answer, err := http.Get(url + "/health")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("it answers %s", answer.Status)
		}
		select {
		case end := <-ended:
			ended <- end
			return fmt.Errorf("etcd ended: %v", end)
		case <-late:
			return fmt.Errorf("etcd isn't healthy after %v: %w", patience, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freeAddress returns a loopback address with a port that was free a moment ago.
func freeAddress() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
