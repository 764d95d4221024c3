package main

import (
	"bytes"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// watch draws the request of a watch.
func (s *source) watch() *pb.WatchCreateRequest {
	request := &pb.WatchCreateRequest{
		Key:            s.key(),
		RangeEnd:       s.end(),
		StartRevision:  s.start(),
		PrevKv:         s.oneIn(2),
		Fragment:       s.oneIn(3),
		ProgressNotify: s.oneIn(5),
		WatchId:        pick(s, []int64{0, 0, 0, 0, 0, 3, 7, 100}),
	}
	switch s.IntN(8) {
	case 0:
		request.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	case 1:
		request.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
	case 2:
		if s.oneIn(3) {
			request.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE, pb.WatchCreateRequest_NOPUT}
		}
	}
	return request
}

// start draws the revision that a watch begins at: now, past, compacted or future.
func (s *source) start() int64 {
	switch s.IntN(8) {
	case 0:
		return s.newest + s.Int64N(3)
	case 1:
		return max(s.compacted+s.Int64N(3)-1, 0)
	case 2:
		return -s.Int64N(3)
	case 3, 4, 5:
		return max(s.newest-s.Int64N(30), 0)
	}
	return 0
}

func (h *history) createWatch() error {
	if len(h.live) == 0 {
		return h.openStream()
	}
	at := h.source.IntN(len(h.live))
	if len(h.live[at]) >= maxWatches {
		return h.cancelWatch()
	}
	return h.create(at, h.source.watch())
}

// create creates a watch on a stream. If what it asks for is compacted, waits until it is canceled.
func (h *history) create(at int, request *pb.WatchCreateRequest) error {
	h.counts.watches++
	err := h.both(request, func(side *side) error { return side.streams[at].create(proto.CloneOf(request)) })
	if err != nil {
		return err
	}
	id := h.sides[0].streams[at].newestWatch()
	if id == -1 {
		return h.compareWatch(at, id, request)
	}
	if request.StartRevision > 0 && request.StartRevision < h.source.compacted {
		return h.endCompacted(at, id, request)
	}
	h.live[at] = append(h.live[at], id)
	return nil
}

// endCompacted waits until both sides have canceled a watch that asks for what is compacted. It then cancels the watch once more:
// etcd answers requests for progress of the stream only after that.
func (h *history) endCompacted(at int, id int64, request *pb.WatchCreateRequest) error {
	err := h.both(request, func(side *side) error {
		stream := side.streams[at]
		over := func() bool { return stream.watches[id] != nil && stream.watches[id].done }
		if err := stream.wait("message \"canceled\"", over, nil); err != nil {
			return err
		}
		return stream.sender.Send(cancelRequest(id))
	})
	if err != nil {
		return err
	}
	return h.compareWatch(at, id, request)
}

func (h *history) cancelWatch() error {
	if len(h.live) == 0 {
		return h.openStream()
	}
	// A watch that is canceled while it catches up may have sent all, some or none of its events.
	if err := h.settle(); err != nil {
		return err
	}
	at := h.source.IntN(len(h.live))
	// The first watch keeps the stream's progress going.
	others := h.live[at][1:]
	if len(others) == 0 || h.source.oneIn(5) {
		// Nobody answers the cancellation of an unknown watch.
		return h.both("cancel an unknown watch", func(side *side) error {
			return side.streams[at].sender.Send(cancelRequest(4711))
		})
	}
	id := pick(h.source, others)
	h.live[at] = slices.DeleteFunc(h.live[at], func(other int64) bool { return other == id })
	what := fmt.Sprintf("cancel watch %d", id)
	err := h.both(what, func(side *side) error {
		stream := side.streams[at]
		return stream.request(cancelRequest(id), "message \"canceled\"", &stream.canceled)
	})
	if err != nil {
		return err
	}
	return h.compare(at, what)
}

// bulk watches writes that are larger than a message about them may be, from the past and from now on.
func (h *history) bulk() error {
	if len(h.live) == 0 || !h.source.oneIn(3) {
		return nil
	}
	at := h.source.IntN(len(h.live))
	write := &pb.TxnRequest{}
	for _, key := range []string{"big/1", "big/2", "big/3"} {
		put := &pb.PutRequest{Key: []byte(key), Value: bytes.Repeat([]byte(key), 85<<10)}
		write.Success = append(write.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
	}
	for range 2 {
		if err := h.call("Txn", write); err != nil {
			return err
		}
	}
	request := &pb.WatchCreateRequest{
		Key: []byte("big/"), RangeEnd: []byte("big0"), StartRevision: h.source.newest - 1, PrevKv: true, Fragment: true,
	}
	if err := h.create(at, request); err != nil {
		return err
	}
	if err := h.call("Txn", write); err != nil {
		return err
	}
	if err := h.call("DeleteRange", &pb.DeleteRangeRequest{Key: []byte("big/"), RangeEnd: []byte("big0")}); err != nil {
		return err
	}
	return h.settle()
}

// settle waits until all watches have caught up, and compares what arrived.
func (h *history) settle() error {
	if len(h.live) == 0 {
		return nil
	}
	// Some puts bring watches of the next revisions to life. An earlier message of progress is not taken for one of now.
	for range 3 {
		if err := h.call("Put", &pb.PutRequest{Key: []byte(anchorKey)}); err != nil {
			return err
		}
	}
	for at := range h.live {
		what := fmt.Sprintf("events of stream %d", at)
		err := h.both(what, func(side *side) error { return side.streams[at].catchUp(h.source.newest) })
		if err != nil {
			return err
		}
		if err := h.compare(at, what); err != nil {
			return err
		}
	}
	return nil
}

// compare compares what arrived for all watches of a stream.
func (h *history) compare(at int, what any) error {
	ids := append(h.sides[0].streams[at].ids(), h.sides[1].streams[at].ids()...)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if err := h.compareWatch(at, id, what); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) compareWatch(at int, id int64, what any) error {
	first := atCompaction(h.sides[0].streams[at].drain(id), h.source.compacted)
	second := atCompaction(h.sides[1].streams[at].drain(id), h.source.compacted)
	for i := range max(len(first), len(second)) {
		if i >= len(first) || i >= len(second) || !proto.Equal(first[i], second[i]) {
			return h.differ(fmt.Sprintf("%v\n  message %d of watch %d", what, i, id), nth(first, i), nth(second, i))
		}
	}
	h.counts.events += len(first)
	return nil
}

func nth(log []proto.Message, i int) string {
	if i >= len(log) {
		return "nothing"
	}
	return text(log[i])
}
