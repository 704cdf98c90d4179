select next_offset from kafka_fence where user_id = $1 and topic = $2 and kafka_partition = $3
